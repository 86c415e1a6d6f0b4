"""The federation as a web page: read-only, off the admin calls, on a listener of its own."""
