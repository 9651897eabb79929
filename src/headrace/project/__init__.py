"""The project file ``headrace.yaml``: one model with default, documentation and validation beside each field."""

from headrace.project.load import FILE_NAME, STATE_FOLDER, Project
from headrace.project.secrets import Secret

__all__ = ["FILE_NAME", "STATE_FOLDER", "Project", "Secret"]
