"""What dies, and what Redis loses: membership, orphans, reassertion.

Imports ``credits`` and what lies below it.
"""
