"""Robot types as data: names, normalisation modes, rotations, action representations. numpy only."""
