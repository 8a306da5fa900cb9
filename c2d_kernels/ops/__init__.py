"""The operators, a folder each: op.py is the public function, reference.py defines it."""
