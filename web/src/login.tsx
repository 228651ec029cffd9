// The ways in: the one-time link, the log-in view, and the log-in that comes up over the page when a
// session ends.

import { signal } from '@preact/signals';
import type { ComponentChildren } from 'preact';
import { invalid, isSetUpOpen, logIn, Problem, setUp } from './api';
import type { User } from './api';
import { useLoad } from './data';
import { LanguageSwitch, Mark } from './shell';
import { Dialog, Field, Form, Password, Show, textOf } from './ui';
import { t } from './words';

const SETUP = '#setup=';

/** The token of the one-time link. It leaves the address bar at once; this tab alone keeps it, for a reload. */
export const setupToken = signal<string | undefined>(undefined);

/** Whether a link was opened that can no longer be used, which the next view is to say. */
export const isLinkOver = signal(false);

interface Kept {
  setupToken?: string;
}

export function takeSetupToken(): void {
  if (location.hash.startsWith(SETUP)) {
    const token = decodeURIComponent(location.hash.slice(SETUP.length));
    history.replaceState({ setupToken: token } satisfies Kept, '', location.pathname + location.search);
  }
  setupToken.value = (history.state as Kept | null)?.setupToken;
}

function leaveSetUp(): void {
  history.replaceState(null, '');
  setupToken.value = undefined;
}

addEventListener('hashchange', takeSetupToken);

function Gate({ title, children }: { title: string; children: ComponentChildren }) {
  return (
    <main class="gate">
      <div class="gate-card">
        <div class="gate-head">
          <Mark />
          <LanguageSwitch />
        </div>
        <h1>{title}</h1>
        {children}
      </div>
    </main>
  );
}

/** A password goes out as it was typed: a space at its end may be meant. */
function passwordOf(data: FormData): string {
  return String(data.get('password') ?? '');
}

function LogInForm({ email }: { email?: string | undefined }) {
  const send = async (data: FormData) => {
    isLinkOver.value = false;
    await logIn(textOf(data, 'email'), passwordOf(data));
  };
  return (
    <Form submit={t('log_in')} onSubmit={send}>
      <Field name="email" label={t('email')}>
        <input type="email" autocomplete="username" required defaultValue={email} autofocus={!email} />
      </Field>
      <Field name="password" label={t('password')}>
        <Password autocomplete="current-password" required autofocus={Boolean(email)} />
      </Field>
    </Form>
  );
}

export function LogIn() {
  return (
    <Gate title={t('log_in_title')}>
      {isLinkOver.value && (
        <p class="stale" role="status">
          {t('set_up_over')}
        </p>
      )}
      <LogInForm />
    </Gate>
  );
}

/** The way in of a set-up link; one that is over leads to the log-in, which says so. */
export function SetUp({ token }: { token: string }) {
  const checked = useLoad(async () => {
    const isOpen = await isSetUpOpen(token);
    if (!isOpen) linkIsOver();
    return isOpen;
  }, [token]);
  return (
    <Gate title={t('set_up_title')}>
      <Show of={checked}>{(isOpen) => isOpen && <SetUpForm token={token} />}</Show>
    </Gate>
  );
}

function linkIsOver(): void {
  isLinkOver.value = true;
  leaveSetUp();
}

function SetUpForm({ token }: { token: string }) {
  const send = async (data: FormData) => {
    if (passwordOf(data) !== data.get('password_again')) throw invalid('password_again', t('is_other_password'));
    try {
      await setUp(token, textOf(data, 'email'), textOf(data, 'name'), passwordOf(data));
    } catch (error) {
      // Used in another tab meanwhile.
      if (error instanceof Problem && error.status === 403) return linkIsOver();
      throw error;
    }
    leaveSetUp();
  };
  return (
    <>
      <p class="quiet">{t('set_up_hint')}</p>
      <Form submit={t('set_up_go')} onSubmit={send}>
        <Field name="name" label={t('your_name')}>
          <input type="text" autocomplete="name" required maxLength={100} autofocus />
        </Field>
        <Field name="email" label={t('email')}>
          <input type="email" autocomplete="username" required maxLength={254} />
        </Field>
        <Field name="password" label={t('password')} hint={t('password_hint')}>
          <Password autocomplete="new-password" required minLength={8} maxLength={256} />
        </Field>
        <Field name="password_again" label={t('password_again')}>
          <Password autocomplete="new-password" required />
        </Field>
      </Form>
      <button type="button" class="link" onClick={leaveSetUp}>
        {t('log_in')}
      </button>
    </>
  );
}

/** Over the page as it stands, so that nobody loses their place or a form half filled in. */
export function LogInAgain({ user }: { user: User }) {
  return (
    <Dialog title={t('session_lost')}>
      <p>{t('session_lost_hint')}</p>
      <LogInForm email={user.email} />
      <button type="button" class="link" onClick={() => location.reload()}>
        {t('someone_else')}
      </button>
    </Dialog>
  );
}
