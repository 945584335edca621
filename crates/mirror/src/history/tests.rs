mod damage;
