"""Privacy of single records at this site: what training and figures cost, what has been spent, and what that means."""
