// The frame around every view: where one can go, who is logged in, which language.

import type { ComponentChildren } from 'preact';
import { useEffect, useState } from 'preact/hooks';
import { logOut } from './api';
import type { User } from './api';
import { Link, place } from './router';
import { Messages } from './ui';
import { language, speak, t, wordOf } from './words';
import type { Word } from './words';

interface Place {
  path: string;
  word: Word;
  icon: string;
  isForAdmins?: boolean;
}

/** The shop, then what works for it, then how the machine does, then who may come in. */
const PLACES: Place[][] = [
  [
    { path: '/', word: 'overview', icon: 'M3 13h6V3H3zm0 8h6v-6H3zm8 0h10V11H11zm0-18v6h10V3z' },
    { path: '/sales', word: 'sales', icon: 'M13 2 4 14h6l-1 8 10-13h-7z' },
    { path: '/products', word: 'products', icon: 'M12 2 3 6.500v11L12 22l9-4.500v-11zM5 8.500l6 3v7.800l-6-3zm14 7.800-6 3v-7.800l6-3z' },
    { path: '/orders', word: 'orders', icon: 'M5 2h14v20l-3-2-2 2-2-2-2 2-2-2-3 2zm3 5v2h8V7zm0 4v2h8v-2z' },
    { path: '/reports', word: 'reports', icon: 'M4 20V10h4v10zm6 0V4h4v16zm6 0v-7h4v7z' },
  ],
  [
    { path: '/tasks', word: 'tasks', icon: 'M3 4h4v4H3zm6 1h12v2H9zM3 10h4v4H3zm6 1h12v2H9zM3 16h4v4H3zm6 1h12v2H9z' },
    { path: '/queues', word: 'queues', icon: 'M3 5h18v4H3zm0 5.500h13v4H3zM3 16h8v4H3z' },
    { path: '/schedules', word: 'schedules', icon: 'M12 2a10 10 0 1 0 0 20 10 10 0 0 0 0-20m-1 4h2v5.600l4 2.300-1 1.700-5-2.900z' },
    {
      path: '/webhooks',
      word: 'webhooks',
      icon: 'M12 3a5 5 0 0 0-3.600 8.500L6.300 15A4 4 0 1 0 10 20h5.200a4 4 0 1 0 0-2H10a4 4 0 0 0-1.900-2.200L11.200 11l-.9-.5A3 3 0 1 1 14.900 8h2A5 5 0 0 0 12 3m1.300 6.600 2.800 4.500 1.700-1-2.800-4.500z',
      isForAdmins: true,
    },
  ],
  [
    {
      path: '/cache',
      word: 'cache',
      icon: 'M12 2 2 7l10 5 10-5zM4.200 11 2 12l10 5 10-5-2.200-1-7.800 3.900zm0 5L2 17l10 5 10-5-2.200-1-7.800 3.900z',
      isForAdmins: true,
    },
    {
      path: '/queries',
      word: 'queries',
      icon: 'M12 2C7.600 2 4 3.300 4 5s3.600 3 8 3 8-1.300 8-3-3.600-3-8-3M4 7.700V12c0 1.700 3.600 3 8 3s8-1.300 8-3V7.700C18.300 9.200 15.300 10 12 10s-6.300-.8-8-2.300m0 7V19c0 1.700 3.600 3 8 3s8-1.300 8-3v-4.300c-1.700 1.500-4.700 2.300-8 2.300s-6.300-.8-8-2.300',
      isForAdmins: true,
    },
  ],
  [
    { path: '/users', word: 'users', icon: 'M9 11a4 4 0 1 0 0-8 4 4 0 0 0 0 8m0 2c-4 0-7 2-7 5v2h14v-2c0-3-3-5-7-5m8-2a3 3 0 1 0-1.500-5.600A6 6 0 0 1 15 10.300c.6.400 1.300.7 2 .7m1 2.200c1.300 1.200 2 2.800 2 4.800v2h2v-2.500c0-2.200-1.600-3.800-4-4.300' },
    { path: '/keys', word: 'keys', icon: 'M14 2a7 7 0 0 0-6.700 9L2 16.300V22h5.700v-3H11v-3h2.300l.6-.6H14A7 7 0 0 0 14 2m2.500 3A2.500 2.500 0 1 1 16.500 10a2.500 2.500 0 0 1 0-5' },
  ],
];

export function Mark() {
  return (
    <span class="mark">
      <svg viewBox="0 0 32 32" aria-hidden="true">
        <rect width="32" height="32" rx="8" />
        <path d="M7 21c4.500 0 5-10 9.500-10 3.200 0 3.600 4.500 1.300 4.500M7 25h18M19 21h6" />
      </svg>
      Onrush
    </span>
  );
}

export function LanguageSwitch() {
  return (
    <div class="languages" role="group" aria-label={t('language')}>
      <button type="button" lang="en" aria-pressed={language.value === 'en'} onClick={() => speak('en')}>
        EN
      </button>
      <button type="button" lang="zh-CN" aria-pressed={language.value === 'zh'} onClick={() => speak('zh')}>
        中文
      </button>
    </div>
  );
}

export function Shell({ user, children }: { user: User; children: ComponentChildren }) {
  const [isMenuOpen, setMenuOpen] = useState(false);
  const { path } = place.value;
  useEffect(() => setMenuOpen(false), [path]);
  const isHere = (to: string) => (to === '/' ? path === '/' : path === to || path.startsWith(`${to}/`));
  const mayGo = (place: Place) => !place.isForAdmins || user.role === 'admin';
  const groups = PLACES.map((group) => group.filter(mayGo)).filter((group) => group.length > 0);
  return (
    <div class={`shell ${isMenuOpen ? 'menu-open' : ''}`} onKeyDown={(event) => event.key === 'Escape' && setMenuOpen(false)}>
      <a class="skip" href="#main">
        {t('skip')}
      </a>
      <header class="top">
        <Mark />
        <button
          type="button"
          class="menu-button"
          aria-expanded={isMenuOpen}
          aria-controls="menu"
          onClick={() => setMenuOpen(!isMenuOpen)}
        >
          <svg viewBox="0 0 24 24" aria-hidden="true">
            <path d={isMenuOpen ? 'M5 5l14 14M19 5 5 19' : 'M4 6h16M4 12h16M4 18h16'} />
          </svg>
          <span class="unseen">{t('menu')}</span>
        </button>
      </header>
      <div class="side" id="menu">
        <nav aria-label={t('main_navigation')}>
          {groups.map((group) => (
            <ul key={group[0]?.path}>
              {group.map(({ path: to, word, icon }) => (
                <li key={to}>
                  <Link to={to} current={isHere(to)} onClick={() => setMenuOpen(false)}>
                    <svg viewBox="0 0 24 24" aria-hidden="true">
                      <path d={icon} />
                    </svg>
                    {t(word)}
                  </Link>
                </li>
              ))}
            </ul>
          ))}
        </nav>
        <div class="side-foot">
          <a href="/docs">{t('docs')}</a>
          <LanguageSwitch />
          <p class="who">
            <b>{user.name}</b>
            <span>{wordOf('role', user.role)}</span>
          </p>
          <button type="button" class="small" onClick={() => void logOut()}>
            {t('log_out')}
          </button>
        </div>
      </div>
      <main id="main" tabIndex={-1}>
        {children}
      </main>
      <Messages />
    </div>
  );
}
