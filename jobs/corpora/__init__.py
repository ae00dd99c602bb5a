"""The built-in corpora of scripts without spaces between words, and the words of the English one."""
