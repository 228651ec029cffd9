// Accounts: find, make staff, change the role, disable.

import { useState } from 'preact/hooks';
import { api, ask, isAdmin, me } from './api';
import { useLoad, usePages } from './data';
import { OrderTable } from './orders';
import { go, Link, place, setQuery } from './router';
import { Choice, Confirm, Fact, Facts, Field, Form, Pager, Password, say, Search, Show, State, Table, textOf, View } from './ui';
import { moment, t, wordOf } from './words';

const ROWS = 25;
const ROLES = ['customer', 'staff', 'admin'];
const STATUSES = ['active', 'disabled'];

function choices(group: 'role' | 'state', all: string, names: string[]): [string, string][] {
  return [['', all], ...names.map((name): [string, string] => [name, wordOf(group, name)])];
}

export function Users() {
  const { query } = place.value;
  const q = query.get('q') ?? '';
  const role = query.get('role') ?? '';
  const status = query.get('status') ?? '';
  const users = usePages(
    (cursor) =>
      ask(
        api.GET('/api/v1/users', {
          params: {
            query: { limit: ROWS, ...(q && { q }), ...(role && { role }), ...(status && { status }), ...(cursor && { cursor }) },
          },
        }),
      ),
    [q, role, status],
  );
  return (
    <View
      title={t('users')}
      actions={
        <Link to="/users/new" class="button primary">
          {t('new_staff')}
        </Link>
      }
    >
      <div class="filters" role="search">
        <Search label={t('search_users')} value={q} onSearch={(text) => setQuery({ q: text })} />
        <Choice
          label={t('role')}
          value={role}
          options={choices('role', t('any_role'), ROLES)}
          onChoose={(chosen) => setQuery({ role: chosen })}
        />
        <Choice
          label={t('status')}
          value={status}
          options={choices('state', t('any_status'), STATUSES)}
          onChoose={(chosen) => setQuery({ status: chosen })}
        />
      </div>
      <Show of={users}>
        {(page) => (
          <Table
            caption={t('users')}
            rows={page.items}
            keyOf={(user) => user.id}
            empty={t('nothing_found')}
            columns={[
              {
                head: t('name'),
                cell: (user) => (
                  <>
                    <Link to={`/users/${user.id}`}>{user.name}</Link>
                    {user.id === me()?.id && <span class="quiet"> ({t('you')})</span>}
                  </>
                ),
              },
              { head: t('email'), kind: 'wide', cell: (user) => user.email ?? '–' },
              { head: t('role'), cell: (user) => wordOf('role', user.role) },
              { head: t('status'), cell: (user) => <State name={user.status} /> },
              { head: t('since'), kind: 'wide', cell: (user) => moment(user.created_at) },
            ]}
          />
        )}
      </Show>
      <Pager of={users} />
    </View>
  );
}

function RoleOptions({ names, chosen }: { names: string[]; chosen: string }) {
  return (
    <>
      {names.map((role) => (
        <option key={role} value={role} selected={role === chosen}>
          {wordOf('role', role)}
        </option>
      ))}
    </>
  );
}

export function NewUser() {
  const send = async (data: FormData) => {
    const user = await ask(
      api.POST('/api/v1/users', {
        body: {
          email: textOf(data, 'email'),
          name: textOf(data, 'name'),
          password: String(data.get('password') ?? ''),
          role: textOf(data, 'role'),
        },
      }),
    );
    say(t('user_created'));
    go(`/users/${user.id}`);
  };
  return (
    <View title={t('new_staff')} back="/users">
      <Form class="card form" submit={t('create')} onSubmit={send} onCancel={() => go('/users')}>
        <Field name="name" label={t('name')}>
          <input type="text" required maxLength={100} autocomplete="off" />
        </Field>
        <Field name="email" label={t('email')}>
          <input type="email" required maxLength={254} autocomplete="off" />
        </Field>
        <Field name="password" label={t('password')} hint={t('password_hint')}>
          <Password required minLength={8} maxLength={256} autocomplete="new-password" />
        </Field>
        <Field name="role" label={t('role')}>
          <select>
            <RoleOptions names={isAdmin() ? ROLES : ['customer']} chosen="staff" />
          </select>
        </Field>
      </Form>
    </View>
  );
}

export function UserView({ id }: { id: number }) {
  const [isDisabling, setDisabling] = useState(false);
  const path = { path: { id } };
  const loaded = useLoad(
    () => ask(api.GET('/api/v1/users/{id}', { params: { ...path, query: { include: 'orders' } } })),
    [id],
  );
  const user = loaded.data;
  const isMe = id === me()?.id;
  const mayChangeRoles = isAdmin();
  const setStatus = async (status: string) => {
    await ask(api.PATCH('/api/v1/users/{id}', { params: path, body: { status } }));
    say(t(status === 'disabled' ? 'user_disabled' : 'user_enabled'));
    loaded.again();
  };
  const save = async (data: FormData) => {
    const body = { name: textOf(data, 'name'), ...(mayChangeRoles && !isMe && { role: textOf(data, 'role') }) };
    await ask(api.PATCH('/api/v1/users/{id}', { params: path, body }));
    say(t('saved'));
    loaded.again();
  };
  return (
    <View
      title={user?.name ?? t('user_n', { n: String(id) })}
      badge={user && <State name={user.status} />}
      back="/users"
      actions={
        user &&
        !isMe && (
          <button
            type="button"
            class={user.status === 'active' ? 'danger' : ''}
            onClick={() => setDisabling(true)}
          >
            {t(user.status === 'active' ? 'disable' : 'enable')}
          </button>
        )
      }
    >
      <Show of={loaded}>
        {(user) => (
          <>
            <section class="card">
              <Facts>
                <Fact name={t('email')}>{user.email ?? '–'}</Fact>
                <Fact name={t('role')}>{wordOf('role', user.role)}</Fact>
                <Fact name={t('since')}>{moment(user.created_at)}</Fact>
                {user.last_seen_at && <Fact name={t('last_seen')}>{moment(user.last_seen_at)}</Fact>}
              </Facts>
            </section>
            <Form key={`${user.name} ${user.role}`} class="card form" submit={t('save')} onSubmit={save}>
              <Field name="name" label={t('name')}>
                <input type="text" required maxLength={100} defaultValue={user.name} autocomplete="off" />
              </Field>
              {/* Admins change roles, and nobody locks themselves out by a slip. */}
              <Field name="role" label={t('role')}>
                <select disabled={isMe || !mayChangeRoles}>
                  <RoleOptions names={ROLES} chosen={user.role} />
                </select>
              </Field>
            </Form>
            <div class="section-head">
              <h2>{t('user_orders')}</h2>
              <Link to={`/orders?user=${id}`}>{t('all_orders')}</Link>
            </div>
            <OrderTable orders={user.orders ?? []} />
          </>
        )}
      </Show>
      {isDisabling && user && (
        <Confirm
          title={t(user.status === 'active' ? 'disable_title' : 'enable', { name: user.name })}
          text={user.status === 'active' ? t('disable_text') : user.name}
          action={t(user.status === 'active' ? 'disable' : 'enable')}
          isDangerous={user.status === 'active'}
          onConfirm={() => setStatus(user.status === 'active' ? 'disabled' : 'active')}
          onClose={() => setDisabling(false)}
        />
      )}
    </View>
  );
}
