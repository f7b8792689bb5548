"""The gateway: attempts of agents in other processes, containers and languages, over HTTP."""
