"""The page that a finished run leaves for a person: `report.html`, one file that opens anywhere."""
