"""Out into the world: fold the adapter into ordinary weights and certify that nothing changed."""
