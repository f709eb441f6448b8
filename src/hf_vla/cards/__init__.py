"""Cards of policies and datasets, in their folders and Hub repositories; pushing them."""
