"""Who leaves the prefix cache first. `orders` names every order; `order` says what one is."""
