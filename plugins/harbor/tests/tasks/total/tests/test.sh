#!/bin/bash

# The machine of the tests has what was published, and nothing else of the agent's.
if [ "$(cat /logs/artifacts/sum.txt)" = 12 ] && [ ! -e numbers.txt ]; then right=1; else right=0; fi
echo "{\"reward\": $right, \"lines\": $(wc -l < /logs/artifacts/sum.txt || echo 0)}" > /logs/verifier/reward.json
