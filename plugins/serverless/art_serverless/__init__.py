"""art-serverless: a backend that trains and serves at a service, and `art serve`, the service."""
