// The script of the try-it page.
