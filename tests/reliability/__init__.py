"""Seeded trials of what can go wrong: damaged models, kills, interruptions, hostile arguments, races and full disks."""
