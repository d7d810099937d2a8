"""The Parquet schemas, the statistics over them and the tables made from them."""
