"""Files that are whole or absent: atomic writes, folders of interrupted runs, locks, and tables for spreadsheets."""
