"""`art serve --api tinker`: the API that the `tinker` SDK speaks, over single operations."""
