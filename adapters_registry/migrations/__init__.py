"""The schema's history, run by Alembic from `Database.migrate`."""
