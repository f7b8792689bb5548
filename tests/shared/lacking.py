"""Make a backend without what it needs: the error must name the remedy."""

import sys

import art_core as art

try:
    art.backend(sys.argv[1])
except art.ArtError as error:
    print(f"{sys.argv[1]}: {error}")
    sys.exit("pip install" not in str(error))
sys.exit("it was made without what it needs")
