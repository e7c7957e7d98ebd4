"""What goes over the wire: pydantic models of requests, typed dictionaries of answers."""
