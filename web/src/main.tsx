// Opens the page: asks who is there, then shows the view that the address names.

import { render } from 'preact';
import { resume, session } from './api';
import { useLoad } from './data';
import { Keys } from './keys';
import { LogIn, LogInAgain, setupToken, SetUp, takeSetupToken } from './login';
import { OrderView, Orders } from './orders';
import { Overview } from './overview';
import { ImportProducts } from './product-import';
import { EditProduct, NewProduct, Products } from './products';
import { place } from './router';
import { NewSale, Sales } from './sales';
import { SaleView } from './sale';
import { Shell } from './shell';
import './style.css';
import { Alert, NotFound, View } from './ui';
import { NewUser, UserView, Users } from './users';
import { t } from './words';

function view(path: string) {
  const [, area = '', name = ''] = /^\/([a-z]*)(?:\/([a-z0-9]+))?$/.exec(path) ?? [undefined, '?'];
  const id = /^\d+$/.test(name) ? Number(name) : undefined;
  switch (`${area}/${id === undefined ? name : 'id'}`) {
    case '/':
      return <Overview />;
    case 'sales/':
      return <Sales />;
    case 'sales/new':
      return <NewSale />;
    case 'sales/id':
      return <SaleView key={id} id={id ?? 0} />;
    case 'products/':
      return <Products />;
    case 'products/new':
      return <NewProduct />;
    case 'products/import':
      return <ImportProducts />;
    case 'products/id':
      return <EditProduct key={id} id={id ?? 0} />;
    case 'orders/':
      return <Orders />;
    case 'orders/id':
      return <OrderView key={id} id={id ?? 0} />;
    case 'users/':
      return <Users />;
    case 'users/new':
      return <NewUser />;
    case 'users/id':
      return <UserView key={id} id={id ?? 0} />;
    case 'keys/':
      return <Keys />;
    default:
      return <NotFound />;
  }
}

function App() {
  const opened = useLoad(resume, []);
  const now = session.value;
  if (setupToken.value !== undefined) return <SetUp token={setupToken.value} />;
  switch (now.state) {
    case 'unknown':
      return opened.problem ? (
        <main class="gate">
          <Alert problem={opened.problem} again={opened.again} />
        </main>
      ) : null;
    case 'out':
      return <LogIn />;
    case 'in':
    case 'lost':
      return (
        <>
          <Shell user={now.user}>
            {now.user.role === 'customer' ? (
              <View title={t('no_access')}>
                <p>{t('no_access_hint', { name: now.user.name })}</p>
              </View>
            ) : (
              view(place.value.path)
            )}
          </Shell>
          {now.state === 'lost' && <LogInAgain user={now.user} />}
        </>
      );
  }
}

takeSetupToken();
const root = document.getElementById('app');
if (root) render(<App />, root);
