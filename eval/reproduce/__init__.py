"""The papers' tables from committed rows: `tables` lists them, `plan` says what they need."""
