"""Where the demo's records come from: one module per site, and one for a folder of the user's own."""
