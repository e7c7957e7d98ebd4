"""The page at `/`: what the server is doing, in a browser. Static files and one JSON route."""
