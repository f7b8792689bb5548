"""art-serverless: training and serving elsewhere, and the server that does it."""
