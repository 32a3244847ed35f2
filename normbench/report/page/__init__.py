"""The page: one HTML file that holds the whole report and needs no network."""
