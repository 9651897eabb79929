"""The project file ``headrace.yaml``: one model with default, documentation and validation beside each field."""
