"""Files to checked columns: CSV, Parquet and JSON lines as chunks of Arrow columns."""
