"""Choose the patches that the backbone sees and the loss counts."""
