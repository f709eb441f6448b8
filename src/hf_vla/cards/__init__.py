"""Model cards: what a policy's folder and its Hub repository say about it."""
