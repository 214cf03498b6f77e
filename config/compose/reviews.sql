-- What pgbench runs again and again in eu-west-1.
insert into reviews (product, stars, note) values ((random() * 999)::int, 1 + (random() * 4)::int, md5(random()::text));
