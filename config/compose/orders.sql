-- What pgbench runs again and again in us-east-1.
begin;
insert into orders (product, quantity) values ((random() * 999)::int, 1 + (random() * 8)::int);
update orders set paid = true where id = (select min(id) from orders where not paid);
commit;
