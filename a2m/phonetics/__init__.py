"""Phonetics from synthesised speech: an inventory of phones, synthesisers with times, a corpus, the encoder."""
