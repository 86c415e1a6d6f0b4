"""One module a page: from the admin calls' answers to what a template shows. Knows nothing of HTTP."""
