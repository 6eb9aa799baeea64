"""What dies, and what Redis loses: membership, the sweeper, orphans, reassertion.

Imports ``credits`` and what lies below it.
"""
