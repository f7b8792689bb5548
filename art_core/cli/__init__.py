"""`art ...`: what is installed, what ran, what it cost. A module a group of commands."""
