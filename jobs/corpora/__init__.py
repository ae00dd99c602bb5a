"""The built-in corpora of scripts without spaces between words."""
