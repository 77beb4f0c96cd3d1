"""Readers of published face models; `lookup` finds the right one, `assemble` finishes what it read."""
