"""An OpenAI-compatible endpoint over any engine that speaks tokens; needs `pip install
art-core[endpoint]`.
"""
