"""Answers of a given form: grammars of llguidance, and the tokens that they allow."""
