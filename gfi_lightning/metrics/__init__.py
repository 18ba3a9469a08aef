"""Is a map right, and how far has it moved?"""
