"""Import package of the API's generated code."""
