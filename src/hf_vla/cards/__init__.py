"""Model cards of policies, in their folders and Hub repositories."""
