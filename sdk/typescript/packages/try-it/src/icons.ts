// Icons, drawn on a grid of 20 units with lines of 1.6.

const SVG = 'http://www.w3.org/2000/svg';

const paths = {
  back: 'M12 4.5 6.5 10l5.5 5.5',
  bell: 'M10 3.2a4.7 4.7 0 0 0-4.7 4.7c0 3.9-1.6 5.3-1.6 5.3h12.6s-1.6-1.4-1.6-5.3A4.7 4.7 0 0 0 10 3.2M8.3 16a1.9 1.9 0 0 0 3.4 0',
  block: 'M10 3a7 7 0 1 0 0 14 7 7 0 0 0 0-14M5.1 5.1l9.8 9.8',
  check: 'M4.5 10.5 8.5 14.5 15.5 6',
  checks: 'M1.8 10.6l3.7 3.7 7-8.3M9.3 13.2l1.1 1.1 7-8.3',
  clock: 'M10 3.2a6.8 6.8 0 1 0 0 13.6 6.8 6.8 0 0 0 0-13.6M10 6.4V10l2.4 1.6',
  close: 'M5 5l10 10M15 5 5 15',
  cut: 'M3 10h4M13 10h4M7.5 6.5v7M12.5 6.5v7',
  device: 'M6.5 2.8h7a1 1 0 0 1 1 1v12.4a1 1 0 0 1-1 1h-7a1 1 0 0 1-1-1V3.8a1 1 0 0 1 1-1M9 14.6h2',
  down: 'M5 8l5 5 5-5',
  alert: 'M10 3.2 17.2 16H2.8zM10 8.2v3.4M10 13.8v.1',
  hood: 'M3 6.5h8M15 6.5h2M3 13.5h2M9 13.5h8M13 4.6a1.9 1.9 0 1 0 0 3.8 1.9 1.9 0 0 0 0-3.8M7 11.6a1.9 1.9 0 1 0 0 3.8 1.9 1.9 0 0 0 0-3.8',
  key: 'M12.8 3.4a3.8 3.8 0 1 1 0 7.6 3.8 3.8 0 0 1 0-7.6M10.1 9.9 3.6 16.4M5.6 14.4l1.9 1.9M8 12l1.5 1.5',
  link: 'M8.2 11.8l3.6-3.6M9 6.2l1.6-1.6a3.4 3.4 0 0 1 4.8 4.8L13.8 11M11 13.8l-1.6 1.6a3.4 3.4 0 0 1-4.8-4.8L6.2 9',
  lock: 'M5.5 9h9v7.2h-9zM7 9V6.6a3 3 0 0 1 6 0V9',
  more: 'M4.6 10h.1M10 10h.1M15.3 10h.1',
  plus: 'M10 4.5v11M4.5 10h11',
  retry: 'M15.8 8.2A6.2 6.2 0 1 0 16.2 11M16.2 4.4v3.9h-3.9',
  search: 'M8.8 3.5a5.3 5.3 0 1 0 0 10.6 5.3 5.3 0 0 0 0-10.6M12.7 12.7l3.8 3.8',
  send: 'M4 10h11M10 4.8 15.4 10 10 15.2',
  shield: 'M10 2.8 16 5v4.6c0 3.6-2.4 6.2-6 7.6-3.6-1.4-6-4-6-7.6V5zM7.2 9.9l2 2 3.6-4',
  signout: 'M8 3.5H4.5v13H8M8.5 10H17M13.6 6.4 17.2 10l-3.6 3.6',
  trash: 'M4 5.5h12M8 5.5V3.5h4v2M5.5 5.5l.8 11h7.4l.8-11M8.5 8.5v5M11.5 8.5v5',
  window: 'M3 4.5h14v11H3zM3 7.8h14M9.5 11.6h4M11.5 9.6v4',
} as const;

export type IconName = keyof typeof paths;

/** An icon. It is hidden from screen readers: what it means stands beside it, or in the label of its button. */
export function icon(name: IconName, size = 20): SVGSVGElement {
  const svg = document.createElementNS(SVG, 'svg');
  for (const [key, value] of Object.entries({ viewBox: '0 0 20 20', width: size, height: size, 'aria-hidden': 'true', class: `icon icon-${name}` })) {
    svg.setAttribute(key, String(value));
  }
  // Grows with the text.
  svg.style.width = svg.style.height = `${size / 16}rem`;
  const path = document.createElementNS(SVG, 'path');
  path.setAttribute('d', paths[name]);
  svg.append(path);
  return svg;
}

/** The mark of Sealwire. */
export function mark(size = 28): HTMLImageElement {
  const image = document.createElement('img');
  image.src = '/try-it/icon.svg';
  image.alt = '';
  image.width = image.height = size;
  image.className = 'mark';
  image.style.width = image.style.height = `${size / 16}rem`;
  return image;
}
