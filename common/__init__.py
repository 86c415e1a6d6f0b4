"""What both services import: nothing in here knows whether it runs at a coordinator or at a participant."""
