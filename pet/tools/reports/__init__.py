"""What people read: the HTML page of a run, the report of a table, plots."""
