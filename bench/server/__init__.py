"""How the HTTP server bears load."""
