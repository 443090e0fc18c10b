"""HTTP: requests, handlers, the page and the API's description."""
