// Opens the page: asks who is there, then shows the view that the address names.

import { render } from 'preact';
import { useEffect } from 'preact/hooks';
import { isAdmin, resume, session } from './api';
import { Cache } from './cache';
import { CacheEntry } from './cache-entry';
import { useLoad } from './data';
import { idOf } from './json';
import { Keys } from './keys';
import { isLinkOver, LogIn, LogInAgain, setupToken, SetUp, takeSetupToken } from './login';
import { OrderView, Orders } from './orders';
import { Overview } from './overview';
import { ImportProducts } from './product-import';
import { EditProduct, NewProduct, Products } from './products';
import { Queries } from './queries';
import { Queues } from './queues';
import { Reports } from './reports';
import { place } from './router';
import { NewSale, Sales } from './sales';
import { SaleView } from './sale';
import { ScheduleDetail } from './schedule';
import { NewSchedule } from './schedule-form';
import { Schedules } from './schedules';
import { Shell } from './shell';
import './style.css';
import { TaskDetail } from './task';
import { NewTask } from './task-form';
import { Tasks } from './tasks';
import { Alert, NotFound, say, View } from './ui';
import { NewUser, UserView, Users } from './users';
import { WebhookDetail } from './webhook';
import { Webhooks } from './webhooks';
import { t } from './words';

/** What a part of the address says; one that was cut or typed wrong names nothing. */
function nameIn(part: string): string {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

function view(path: string) {
  const [, area = '', name = ''] = /^\/([a-z]*)(?:\/([^/]+))?$/.exec(path) ?? [undefined, '?'];
  // These are called by names, and a name may look like a number; none begins with a plus sign.
  if (name !== '' && name !== (area === 'tasks' ? 'new' : '+new')) {
    const called = nameIn(name);
    if (area === 'tasks') return <TaskDetail key={called} id={called} />;
    if (area === 'schedules') return <ScheduleDetail key={called} name={called} />;
    if (area === 'cache') return isAdmin() ? <CacheEntry key={called} name={called} /> : <NotFound />;
  }
  const id = /^\d+$/.test(name) ? idOf(name) : undefined;
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
    case 'reports/':
      return <Reports />;
    case 'tasks/':
      return <Tasks />;
    case 'tasks/new':
      return <NewTask />;
    case 'queues/':
      return <Queues />;
    case 'schedules/':
      return <Schedules />;
    case 'schedules/+new':
      return <NewSchedule />;
    case 'webhooks/':
      return isAdmin() ? <Webhooks /> : <NotFound />;
    case 'webhooks/id':
      return isAdmin() ? <WebhookDetail key={id} id={id ?? 0} /> : <NotFound />;
    case 'cache/':
      return isAdmin() ? <Cache /> : <NotFound />;
    case 'queries/':
      return isAdmin() ? <Queries /> : <NotFound />;
    case 'keys/':
      return <Keys />;
    default:
      return <NotFound />;
  }
}

function App() {
  const opened = useLoad(resume, []);
  const now = session.value;
  const isToSay = isLinkOver.value && now.state === 'in';
  useEffect(() => {
    if (!isToSay) return;
    isLinkOver.value = false;
    say(t('set_up_done'));
  }, [isToSay]);
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
